"""Programs that are watched are no tests of the kit."""

collect_ignore_glob = ["programs/*", "seed/*"]
