import os

from django.core.asgi import get_asgi_application
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from ormbridge import BridgeMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
PsycopgInstrumentor().instrument()
DjangoInstrumentor().instrument()  # before the application is made  # <--

application = BridgeMiddleware(get_asgi_application())
