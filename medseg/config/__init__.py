"""One YAML file describes a run: its schema, how it is read and how it is written."""
