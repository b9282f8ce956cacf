"""The patches of each program: `BUGS` and `HEALTHY`."""
