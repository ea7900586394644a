"""Indexes beyond one machine: tables in PostgreSQL with pgvector, frames in files or objects."""
