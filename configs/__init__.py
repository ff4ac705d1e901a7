"""YAML presets of jaxdiff; a preset is found by its file name."""
