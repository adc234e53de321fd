"""Django's settings, all from `environment.py`; nothing here is edited to run Andon.

Numbers about SQLite, connections and CSP are measured in docs/decisions.
"""

import os
import tomllib

import environ
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from config import environment

try:
    ANDON = environment.read(os.environ)
except environment.Nonsense as refusal:
    raise ImproperlyConfigured(str(refusal)) from None

BASE_DIR = environment.BASE_DIR
ANDON_HOME = ANDON.home
ANDON_WORKSPACE = list(ANDON.workspace)
ANDON_NODE = ANDON.node
ANDON_BIND = ANDON.bind
ANDON_PORT = ANDON.port
ANDON_WEB_ONLY = ANDON.web_only
ANDON_EXECUTABLES = ANDON.executables
ANDON_HEALTH_HOSTS = ANDON.health_hosts
ANDON_DENIED_ENV = ANDON.denied_env
ANDON_LOOP_ENV = ANDON.loop_env
ANDON_LOOP_AGENT = ANDON.loop_agent
ANDON_JOURNAL_ROOTS = list(ANDON.journal_roots)
ANDON_RECOVER = ANDON.recover
ANDON_SERVICES_PER_PROJECT = ANDON.services_per_project
ANDON_SERVICES_PER_HOST = ANDON.services_per_host
ANDON_DISPATCH = ANDON.dispatch
ANDON_WORKERS_PER_HOST = ANDON.workers_per_host
ANDON_URL = ANDON.url
ANDON_BOARD = ANDON.board
ANDON_WEBHOOK_HOSTS = ANDON.webhook_hosts
REDIS_URL = ANDON.redis_url
VERSION = tomllib.loads((BASE_DIR / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

SECRET_KEY = ANDON.secret_key
DEBUG = False
# Workers on this machine reach the pages at the address that is bound.
ALLOWED_HOSTS = [*ANDON.allowed_hosts, *([ANDON.bind] if ANDON.bind not in {"0.0.0.0", "::"} else [])]  # noqa: S104

INSTALLED_APPS = [
    "config.apps.AndonAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "csp",
    "ninja",
    "config",
    "projects",
    "services",
    "kanban",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    # Above ConditionalGet: an ETag names the content, not one of its compressions.
    "config.door.GzipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "config.door.DoorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "config.queries.frame",
            ],
            "builtins": ["projects.templatetags.andon"],
        },
    }
]

if ANDON.database_url:
    _database = environ.Env.db_url_config(ANDON.database_url)
    DATABASES = {
        "default": {
            **_database,
            "ENGINE": "django.db.backends.postgresql",
            # A connection that the server has dropped is not handed out again.
            "CONN_HEALTH_CHECKS": True,
            "CONN_MAX_AGE": 0,
            "OPTIONS": {**_database.get("OPTIONS", {}), "pool": {"min_size": 1, "max_size": 24, "timeout": 10}},
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ANDON_HOME / "andon.sqlite3",
            # Persistent connections leak a descriptor per request thread under ASGI.
            "CONN_MAX_AGE": 0,
            # A file, since threads and processes of a test share it.
            "TEST": {"NAME": ANDON_HOME / "test.sqlite3"},
            "OPTIONS": {
                # Without IMMEDIATE half of the concurrent read-then-write transactions fail.
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": (
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                    "PRAGMA mmap_size=134217728; PRAGMA cache_size=-16000; PRAGMA journal_size_limit=67108864;"
                ),
            },
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTHENTICATION_BACKENDS = ["projects.access.WithRoles"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"
SESSION_COOKIE_AGE = 60 * 60 * 24 * 30
SESSION_COOKIE_NAME = "andon_session"
CSRF_COOKIE_NAME = "andon_csrf"
CSRF_FAILURE_VIEW = "config.views.errors.csrf_refused"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"

X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
if not ANDON.is_loopback:
    # A proxy with TLS stands in front; health checks from beside the process stay plain.
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 60 * 60 * 24 * 365
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in ANDON.allowed_hosts]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
        "img-src": [SELF, "data:"],
    }
}

STATIC_URL = "/static/"
STATIC_ROOT = ANDON_HOME / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "config.static_files.CollectedOrPlain"},
}
# `up` collects hashed, compressed copies; without them the sources are served as they are.
WHITENOISE_USE_FINDERS = not (STATIC_ROOT / "staticfiles.json").exists()
WHITENOISE_ALLOW_ALL_ORIGINS = False

EMAIL_IS_SET_UP = bool(ANDON.email_url)
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = ANDON.email_from or "andon@localhost"
if ANDON.email_url:
    globals().update(environ.Env.email_url_config(ANDON.email_url))

LANGUAGE_CODE = "en"
# Django's own catalogues would mix other languages into our English texts.
LANGUAGES = [("en", "English")]
USE_I18N = True
USE_TZ = True
TIME_ZONE = ANDON.time_zone

DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
NINJA_PAGINATION_MAX_LIMIT = 1000

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "andon": {"level": "INFO"},
        # Django logs every 4xx as a warning; refusals are answers, not incidents.
        "django.request": {"level": "ERROR"},
        "huey": {"level": "WARNING"},
    },
}
