"""Training runs: what was asked, how far it got, what came of it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "training_runs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False, comment="what it was asked to do, as JSON"),
        sa.Column("why", sa.Text, nullable=False, comment="why it was started"),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False, comment="of the lease train:APP; one process"),
        sa.Column("attempts", sa.BigInteger, nullable=False, comment="1 for a run that was never resumed"),
        sa.Column("started_s", sa.Float, nullable=False, comment="times are by the database's clock"),
        sa.Column("heartbeat_s", sa.Float, nullable=False),
        sa.Column("ended_s", sa.Float, nullable=True),
        sa.Column("fingerprint", sa.Text, nullable=False, comment="of its data sets"),
        sa.Column("feedback_seq", sa.BigInteger, nullable=False, comment="the last feedback event it learnt from"),
        sa.Column("version", sa.BigInteger, nullable=True, comment="the candidate"),
        sa.Column("outcome", sa.Text, nullable=False, comment="gates and alias, as JSON"),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("mlflow_run", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("training_runs_by_app", "training_runs", ["app", "id"])


def downgrade() -> None:
    op.drop_table("training_runs")
