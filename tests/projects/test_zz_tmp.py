import pytest, time
from datetime import timedelta
from django.db.models import *
from django.db.models.functions import Coalesce
from django.utils import timezone
from projects.models import *
pytestmark = pytest.mark.django_db
def test_it(imported, capsys):
    p = imported("demo"); now = timezone.now()
    N=3000
    Iteration.objects.bulk_create(Iteration(project=p, number=i, started_at=now-timedelta(days=1), written_at=now) for i in range(N))
    UsageEntry.objects.bulk_create(UsageEntry(project=p, key=str(i), at=now, iteration=i, cost=i%7) for i in range(N))
    UsageEntry.objects.create(project=p, key="old", at=now-timedelta(days=2), iteration=5, cost=1000)
    begun = ExpressionWrapper(Coalesce(F("started_at"), ExpressionWrapper(F("written_at")-timedelta(hours=6), DateTimeField()))-timedelta(minutes=1), DateTimeField())
    rows = Iteration.objects.filter(project=p).annotate(begun=begun)
    def go(name, q):
        t=time.perf_counter(); got=[(r.number, r.c) for r in q[:100]]
        with capsys.disabled(): print(name, time.perf_counter()-t, got[:3], [g for g in got if g[0]==5], str(q.query)[:1500])
    try:
        q = rows.annotate(u=FilteredRelation("project__usage", condition=Q(project__usage__iteration=F("number"), project__usage__at__gte=F("begun")))).annotate(c=Sum("u__cost")).order_by(F("c").desc(nulls_last=True), "pk")
        go("fr", q)
    except Exception as e:
        with capsys.disabled(): print("fr", repr(e))
    sub = UsageEntry.objects.filter(project=OuterRef("project"), iteration=OuterRef("number"), at__gte=OuterRef("begun")).order_by().values("iteration").annotate(s=Sum("cost")).values("s")
    q = rows.annotate(c=Subquery(sub)).order_by(F("c").desc(nulls_last=True), "pk")
    go("sub", q)
