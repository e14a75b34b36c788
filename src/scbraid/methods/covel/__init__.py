"""CoVEL: comprehensive view embedding learning."""
