"""What a stage is (plan.py, folder.py) and running one (run.py)."""
