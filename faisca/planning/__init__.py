"""What a stage takes before it runs: bytes by formula, compared in tests with what both twins take."""
