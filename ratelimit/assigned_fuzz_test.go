package ratelimit

import (
	"log/slog"
	"math"
	"testing"
	"time"

	rlqsv3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	"google.golang.org/protobuf/proto"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// FuzzQuotaReports takes any report of a proxy's buckets: none is answered with more
// than the limit, and each answer is of a bucket that was asked about.
func FuzzQuotaReports(f *testing.F) {
	const most = 100
	s, _, _ := newServer(f)
	withQuotas(f, s, policy("q", false, per(most, time.Minute)))
	bucket := func(name string, passed uint64) *rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage {
		return &rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{BucketId: &rlqsv3.BucketId{Bucket: map[string]string{configpb.QuotaCounterKey: name}}, NumRequestsAllowed: passed}
	}
	for _, r := range []*rlqsv3.RateLimitQuotaUsageReports{
		{},
		{Domain: configpb.QuotaDomain, BucketQuotaUsages: []*rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{bucket("default/q 0 source.principal=a", 3), bucket("default/q 0 source.principal=a", math.MaxUint64)}},
		{BucketQuotaUsages: []*rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{bucket("", 1), bucket("default/none 0", 1), bucket("\xff", 1), {BucketId: &rlqsv3.BucketId{Bucket: map[string]string{"x": "y"}}}}},
	} {
		data, err := proto.Marshal(r)
		if err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &rlqsv3.RateLimitQuotaUsageReports{}
		if proto.Unmarshal(data, r) != nil {
			return
		}
		a := newAssignedServer(s, slog.New(slog.DiscardHandler))
		proxy, err := a.books.Open("uid=0")
		if err != nil {
			t.Fatal(err)
		}
		asked := map[string]bool{}
		for _, u := range r.GetBucketQuotaUsages() {
			asked[u.GetBucketId().GetBucket()[configpb.QuotaCounterKey]] = true
		}
		for _, answer := range a.report(t.Context(), proxy, r) {
			if !asked[answer.ID] || answer.Lump > most {
				t.Errorf("the answer is %+v", answer)
			}
			if _, err := proto.Marshal(action(answer)); err != nil {
				t.Errorf("the answer cannot be sent: %v", err)
			}
		}
		if err := proxy.Close(t.Context(), s.now()); err != nil {
			t.Error(err)
		}
	})
}
