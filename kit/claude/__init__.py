"""What the kit adds to a project for Claude Code: commands, settings compiled from `.clauderc`, and their removal."""
