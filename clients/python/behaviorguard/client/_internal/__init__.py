"""Not part of the public interface: may change in any release."""
