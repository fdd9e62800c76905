"""What training samples touch: intent, audience, reality (§3.2), counted with known error."""
