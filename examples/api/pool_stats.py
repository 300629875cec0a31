from django.conf import settings

from ormbridge import PoolStats, stats

settings.configure(ORMBRIDGE={"MAX_THREADS": 4})


def is_busy(pool: PoolStats) -> bool:  # <--
    return pool.waiting > 0 or (pool.threads == pool.max_threads and pool.idle == 0)


if __name__ == "__main__":
    print("busy" if is_busy(stats()) else f"room for {stats().max_threads} calls")
