"""The HSM (port 8443): keys are made, used and destroyed in its process."""
