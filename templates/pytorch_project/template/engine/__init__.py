"""What train.py and evaluate.py share; knows nothing of particular data sets or models."""
