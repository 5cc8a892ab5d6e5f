"""Three requests: one that enqueues in its transaction, one that has no transaction, one that asks what became of a job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, PositiveInt

from cluster import AsyncClient
from examples.orders_fastapi.database import Order, engine, new_session
from examples.orders_fastapi.jobs.confirm_order import ConfirmOrderJob
from examples.orders_fastapi.jobs.subscribe import SubscribeJob

IN_STOCK = 10


class State(TypedDict):
    client: AsyncClient


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
    """The client's pool is opened with the application, and closed with it."""
    async with AsyncClient() as client:
        yield {"client": client}
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    article: str
    quantity: PositiveInt


class Subscription(BaseModel):
    email: str


@app.post("/orders", status_code=201)
async def place_order(wanted: NewOrder) -> dict[str, int]:
    """Not a session by Depends: FastAPI ends those after the answer, which would then speak of what is not committed yet."""
    async with new_session.begin() as session:  # the order and its job, or neither
        order = Order(article=wanted.article, quantity=wanted.quantity)
        session.add(order)
        await session.flush()  # for its id
        await ConfirmOrderJob(order_id=order.id).perform_later(session)
        if wanted.quantity > IN_STOCK:
            raise HTTPException(409, "out of stock")
    return {"id": order.id}


@app.get("/orders/{order_id}")
async def show_order(order_id: int) -> dict[str, bool]:
    async with new_session() as session:
        order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "no such order")
    return {"confirmed": order.confirmed_at is not None}


@app.post("/subscriptions", status_code=202)
async def subscribe(wanted: Subscription, request: Request) -> dict[str, int | None]:
    client: AsyncClient = request.state.client
    job = await client.enqueue(SubscribeJob(email=wanted.email))
    return {"job": job.id}
