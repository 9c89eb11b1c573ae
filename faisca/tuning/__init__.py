"""What a machine makes of a configuration: `faisca plan` by formula, `faisca tune` by measuring."""
