package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// regionLimits is the ratelimit of region east, which keeps limits with west and north.
type regionLimits struct {
	ratelimitpb.UnimplementedLimitsServer
	problem string // of north
}

func (l *regionLimits) Grant(_ context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	c := &ratelimitpb.Counter{Key: r.GetKey(), Limit: "l", Requests: 10, Every: durationpb.New(time.Minute), Remaining: 2}
	c.Regions = []*ratelimitpb.RegionPart{{Region: "east", Requests: 4, Remaining: 2, Given: 1}}
	if r.GetAllRegions() {
		c.Regions = append(c.Regions, &ratelimitpb.RegionPart{Region: "west", Requests: 3, Remaining: 3, Given: 2}, &ratelimitpb.RegionPart{Region: "north", Requests: 3, Problem: l.problem})
	}
	return c, nil
}

// TestLimitsOfRegions: operators see which region's part they changed, and what was not.
func TestLimitsOfRegions(t *testing.T) {
	limits := &regionLimits{}
	socket := adminServer(t, func(s *grpc.Server) { ratelimitpb.RegisterLimitsServer(s, limits) })
	for _, c := range []struct {
		problem string
		args    []string
		code    int
		want    []string
	}{
		{"", nil, 0, []string{"  region east: 2 of its 4 are left, 1 given back\n", "only the part of region east was changed; --all-regions changes those of the others too\n"}},
		{"", []string{"--all-regions"}, 0, []string{"  region west: 3 of its 3 are left, 2 given back\n  region north: 0 of its 3 are left\n"}},
		{"no", []string{"--all-regions"}, 2, []string{"  region north: not changed: no\n", "not changed in region north, but in the others"}},
		{"", []string{"-o", "json"}, 0, []string{`"region": "east"`, `"given": 1`}},
	} {
		limits.problem = c.problem
		var out strings.Builder
		code := Main(append([]string{"limits", "grant", "k", "3", "--reason", "r", "--admin", socket}, c.args...), &out, &out)
		if code != c.code {
			t.Errorf("%q: exit code %d, want %d", c.args, code, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q: %s\nwant %q", c.args, out.String(), want)
			}
		}
		if all := len(c.args) == 1; all == strings.Contains(out.String(), "only the part") {
			t.Errorf("%q: %s", c.args, out.String())
		}
	}
}

// TestShownWithoutControl: neither a caller nor another region can write into an operator's
// terminal, or make up a line of the audit.
func TestShownWithoutControl(t *testing.T) {
	const bad = "a\x1b[2J\nb\tc"
	var out strings.Builder
	if err := printLimitChanges(&out, []limitChangeRow{{Actor: bad, What: "reset", Key: bad, Reason: bad}}); err != nil {
		t.Fatal(err)
	}
	if err := printTop(&out, []topCaller{{Limit: "l", Key: bad}}); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Count(text, "a?[2J?b?c") != 4 || strings.Count(text, "\n") != 4 || strings.ContainsAny(text, "\x1b\t") {
		t.Errorf("%q", text)
	}
}
