"""Named recipes, one YAML file each; read by distill.recipe."""
