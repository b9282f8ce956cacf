"""placeholder"""
NAME = "TrainCheck"
PACKAGES: list[str] = []
