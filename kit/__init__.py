"""The command line of the kit: thin verbs over the verifier and the templates."""

__version__ = "0.1.0"
