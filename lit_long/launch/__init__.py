"""Where stages run, and running a plan: local.py starts processes, runner.py goes through the stages, display.py shows it."""
