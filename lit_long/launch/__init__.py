"""Where stages run, and running a plan: runner.py goes through the stages, a launcher (launcher.py) starts them, display.py shows it."""
