import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

from django.contrib.auth.models import User
from telegram.ext import Application, CommandHandler

from ormbridge import pinned


@pinned()  # <--
async def greeting(telegram_id):
    user, is_new = await User.objects.aget_or_create(username=f"telegram-{telegram_id}")
    return "Welcome" if is_new else f"Welcome back, {user.username}"


async def start(update, context):
    text = await greeting(update.effective_user.id)
    await update.message.reply_text(text)


def build(token):
    application = Application.builder().token(token).concurrent_updates(True).build()
    application.add_handler(CommandHandler("start", start))
    return application


if __name__ == "__main__":
    build(os.environ["BOT_TOKEN"]).run_polling()
