"""The profiles that Andon ships; administrators change and delete them like their own."""

from django.db import migrations

from kanban.profiles import SHIPPED


def ship(apps, schema_editor):
    Profile = apps.get_model("kanban", "Profile")
    for name, fields in SHIPPED.items():
        Profile.objects.get_or_create(name=name, defaults=fields)


class Migration(migrations.Migration):
    dependencies = [("kanban", "0001_tasks")]

    operations = [migrations.RunPython(ship, migrations.RunPython.noop)]
