"""What runs the system on one machine, and the tools around it; no production code imports it."""
