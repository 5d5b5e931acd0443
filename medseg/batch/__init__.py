"""From a model and an archive to masks: nothing is lost, and nothing done twice."""
