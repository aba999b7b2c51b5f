"""Policy decides: allow, ask or deny, with the rule that said so."""
