"""The HSM (port 8443): keys are made, used and destroyed here, and leave only sealed.

`ceremony` opens and closes it, `engine` works with keys, `keystore` and `journal` keep them on three `modules`,
`vaults` say where the master key is.
"""
