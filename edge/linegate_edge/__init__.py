"""The station service: cameras in, verdicts out, nothing lost."""
