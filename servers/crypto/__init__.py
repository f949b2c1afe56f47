"""Post-quantum primitives behind one Protocol, and what the HSM and the quantum service must compute alike."""
