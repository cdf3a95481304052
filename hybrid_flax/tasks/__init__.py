"""Tasks: what a batch means, its loss as (sum, count), and what is measured."""
