"""The application's own tables. Jobs and requests use the same models."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = make_url(os.environ.get("CLUSTER_DATABASE_URL", "postgresql:///orders"))
engine = create_async_engine(URL.set(drivername="postgresql+psycopg"))
new_session: async_sessionmaker[AsyncSession] = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    article: Mapped[str]
    quantity: Mapped[int]
    confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


async def create_tables() -> None:
    """In a larger application Alembic does this."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


if __name__ == "__main__":
    asyncio.run(create_tables())
