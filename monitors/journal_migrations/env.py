"""What Alembic runs to change a journal's schema: on the connection, and in the transaction, of whoever asked."""

from alembic import context

from monitors.journal_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # in SQLite too: our connections begin transactions themselves
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
