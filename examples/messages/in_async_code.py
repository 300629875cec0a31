import asyncio
import logging
import warnings

import django
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.db import connections, transaction
from django.http import HttpResponse


async def count_users():
    return await User.objects.acount()


async def find_nobody():
    raise User.DoesNotExist("User matching query does not exist.")


async def names():
    await asyncio.sleep(0)
    yield "ada"


async def query_in_a_coroutine():
    User.objects.count()


async def atomic_in_a_coroutine():
    async with transaction.atomic():
        pass


async def on_commit_in_a_coroutine():
    transaction.on_commit(print)


async def cursor_in_a_coroutine():
    connections["default"].cursor()


async def await_a_queryset():
    await User.objects.filter(is_active=True)


async def await_a_response():
    await HttpResponse("made by a synchronous view")


async def async_for_over_a_list():
    async for user in [User(username="ada")]:
        print(user)


async def async_for_over_a_manager():
    async for group in User(pk=1).groups:
        print(group)


async def for_over_an_async_generator():
    for user in User.objects.aiterator():
        print(user)


async def connection_of_another_thread():
    own = connections["default"]
    try:
        await asyncio.to_thread(own.cursor)
    finally:
        own.connection.close()


async def async_to_sync_in_a_coroutine():
    async_to_sync(count_users)()


async def sync_to_async_of_a_coroutine_function():
    sync_to_async(count_users)


async def async_to_sync_of_a_function():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async_to_sync(User.objects.count)


async def run_in_a_running_loop():
    coroutine = count_users()
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


async def other_loop_in_a_running_loop():
    other, coroutine = asyncio.new_event_loop(), count_users()
    try:
        other.run_until_complete(coroutine)
    finally:
        coroutine.close()
        other.close()


async def future_of_another_loop():
    other = asyncio.new_event_loop()
    try:
        await other.create_future()
    finally:
        other.close()


async def loop_that_is_closed():
    other = asyncio.new_event_loop()
    other.close()
    other.call_soon(print)


async def coroutine_that_nobody_awaits():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        count_users()
    raise found[0].message


async def loop_of_a_thread_without_one():
    await asyncio.to_thread(asyncio.get_event_loop)


async def task_that_fails_unseen():
    loop, found = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: found.append(context["message"]))
    await asyncio.wait([asyncio.create_task(find_nobody())])
    loop.set_exception_handler(None)
    raise Warning(found[0])


async def task_that_fails_in_a_group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(find_nobody())


async def generator_that_two_tasks_use():
    generator = names()
    other = asyncio.create_task(anext(generator))
    await asyncio.sleep(0)  # the other task waits for the first name now
    try:
        await generator.aclose()
    finally:
        await other


async def task_that_holds_up_the_loop():
    loop, found = asyncio.get_running_loop(), []
    logging.getLogger("asyncio").addFilter(lambda record: found.append(record.getMessage()))
    loop.set_debug(True)
    loop.slow_callback_duration = 0  # 0.1 seconds unless you set it
    await asyncio.create_task(asyncio.sleep(0))
    loop.set_debug(False)
    raise Warning(next(each for each in found if "Task" in each))


MISTAKES = [
    query_in_a_coroutine,
    atomic_in_a_coroutine,
    on_commit_in_a_coroutine,
    cursor_in_a_coroutine,
    await_a_queryset,
    await_a_response,
    async_for_over_a_list,
    async_for_over_a_manager,
    for_over_an_async_generator,
    connection_of_another_thread,
    async_to_sync_in_a_coroutine,
    sync_to_async_of_a_coroutine_function,
    async_to_sync_of_a_function,
    run_in_a_running_loop,
    other_loop_in_a_running_loop,
    future_of_another_loop,
    loop_that_is_closed,
    coroutine_that_nobody_awaits,
    loop_of_a_thread_without_one,
    task_that_fails_unseen,
    task_that_fails_in_a_group,
    generator_that_two_tasks_use,
    task_that_holds_up_the_loop,
]


async def main():
    for make in MISTAKES:
        try:
            await make()
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
