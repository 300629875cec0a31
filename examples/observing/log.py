import logging

from django.utils.decorators import async_only_middleware

from ormbridge import stats

logger = logging.getLogger(__name__)


@async_only_middleware
def log_waits(get_response):
    seen = stats()

    async def middleware(request):
        nonlocal seen
        response = await get_response(request)
        before, seen = seen, stats()
        if waited := seen.queued - before.queued:  # <--
            logger.warning(
                "%d calls waited for a worker, %d wait now; %d of %d workers are free",
                waited,
                seen.waiting,
                seen.idle,
                seen.max_threads,
            )
        return response

    return middleware
