"""Many runs from one command. Light: imported before Hydra runs, so torch is not."""
