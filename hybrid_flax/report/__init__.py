"""Reports on finished runs: tables and figures."""
