package ratelimit

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// recorded is a sequence of requests with what envoyproxy/ratelimit answered to each,
// version f2fb15770f7f of July 2026 over a real Redis. Times until windows end are
// left out, since windows of it follow the clock.
type recorded struct {
	Name   string               `json:"name"`
	Env    map[string]string    `json:"env"`
	Config string               `json:"config"`
	Steps  [][2]json.RawMessage `json:"steps"`
}

// options are the settings for the environment that the incumbent had.
func (r recorded) options(t *testing.T) DropInConfig {
	t.Helper()
	c := defaultDropIn()
	for name, value := range r.Env {
		switch name {
		case "SHADOW_MODE":
			c.ShadowMode = true
		case "QUOTA_MODE":
			c.QuotaMode = true
		case "RESPONSE_DYNAMIC_METADATA":
			c.DynamicMetadata = true
		case "LIMIT_RESPONSE_HEADERS_ENABLED":
			c.Headers.Enabled = true
		case "LIMIT_LIMIT_HEADER":
			c.Headers.Limit = value
		case "LIMIT_REMAINING_HEADER":
			c.Headers.Remaining = value
		case "LIMIT_RESET_HEADER":
			c.Headers.Reset = value
		default:
			t.Fatalf("unknown setting %s", name)
		}
	}
	return c
}

// TestAnswersAreTheIncumbents: the same requests get the same answers as from
// envoyproxy/ratelimit.
func TestAnswersAreTheIncumbents(t *testing.T) {
	data, err := os.ReadFile("testdata/incumbent.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []recorded
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	redis := redistest.Start(t)
	shared, err := redisstore.New(redisstore.Options{Address: redis.Address(), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, shared.Run)
	steps := 0
	for _, r := range all {
		for _, store := range []Store{memory.New(0), shared} {
			// In process a key has one window: a request that brings its own limit by
			// another unit than the last one begins anew.
			if _, inProcess := store.(*memory.Store); inProcess && r.Name == "overrides" {
				continue
			}
			redis.Command(t, "FLUSHALL")
			s, _, _ := newServer(t)
			s.store, s.dropIn = store, r.options(t)
			withDescriptors(t, s, r.Config)
			for i, step := range r.Steps {
				steps++
				if diff := r.compare(t, s, step); diff != "" {
					t.Errorf("%T, %s, step %d, %s (-envoyproxy/ratelimit +writ-ratelimit):\n%s", store, r.Name, i, step[0], diff)
				}
			}
		}
	}
	if steps < 800 {
		t.Errorf("%d requests were compared", steps)
	}
}

func (r recorded) compare(t *testing.T, s *Server, step [2]json.RawMessage) string {
	t.Helper()
	req, want := &rlsv3.RateLimitRequest{}, &rlsv3.RateLimitResponse{}
	if err := protojson.Unmarshal(step[0], req); err != nil {
		t.Fatal(err)
	}
	got, err := s.ShouldRateLimit(t.Context(), req)
	var failed struct{ Error string }
	if json.Unmarshal(step[1], &failed) == nil && failed.Error != "" {
		if err == nil || !strings.HasSuffix(failed.Error, status.Convert(err).Message()) {
			return fmt.Sprintf("-%s\n+%v, %v", failed.Error, got, err)
		}
		return ""
	}
	if err != nil {
		return err.Error()
	}
	if err := protojson.Unmarshal(step[1], want); err != nil {
		t.Fatal(err)
	}
	for _, st := range got.GetStatuses() {
		st.DurationUntilReset = nil
	}
	for _, h := range got.GetResponseHeadersToAdd() {
		if h.GetKey() == s.dropIn.Headers.Reset {
			h.Value = ""
		}
	}
	return cmp.Diff(want, got, protocmp.Transform())
}
