"""Who may call, and over what: certificates, tokens, scopes. Nothing here knows what a call does."""
