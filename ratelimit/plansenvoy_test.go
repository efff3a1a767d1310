package ratelimit

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// serve answers Envoys on a socket until the test ends.
func serve(t *testing.T, s *Server) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(g, s)
	done := make(chan struct{})
	go func() { _ = g.Serve(l); close(done) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return socket
}

// TestEnvoyAsksByPlan: through a real Envoy two customers have what their plans say, one
// whom nobody knows is refused, and a changed file is in force without a restart.
func TestEnvoyAsksByPlan(t *testing.T) {
	t.Parallel()
	config, err := os.ReadFile("testdata/planned.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i, envoy := range envoytest.All(t) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			replaceFile(t, filepath.Join(dir, "t.plans"), "numbers n\nplan free 2\nplan gold 5\ndefault refuse\ncaller ann gold\ncaller bob free\n")
			s, _, _ := newServer(t)
			s.now = time.Now
			withPlans(t, s, followed(t, plans.Options{Folder: dir}), &configpb.Limit{
				Per: []string{"request.headers[x-customer]"}, Every: durationpb.New(time.Hour), Plan: &configpb.QuotaPlan{Table: "t", By: "request.headers[x-customer]"},
			})
			address := proctest.Address(t)
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			bootstrap := filepath.Join(t.TempDir(), "envoy.yaml")
			writeFile(t, bootstrap, strings.NewReplacer("LISTEN", port, "SOCKET", serve(t, s)).Replace(string(config)))
			envoytest.Run(t, envoy, bootstrap)
			proctest.Eventually(t, 60*time.Second, func() error { // unknown: takes nothing
				code, err := as(t, address, "nobody")
				if err == nil && code != http.StatusTooManyRequests {
					err = fmt.Errorf("status %d", code)
				}
				return err
			})
			for customer, want := range map[string]int{"ann": 5, "bob": 2, "nobody": 0} {
				if n := passing(t, address, customer); n != want {
					t.Errorf("%s: %d pass, want %d", customer, n, want)
				}
			}
			replaceFile(t, filepath.Join(dir, "t.plans"), "numbers n\nplan free 2\nplan gold 5\ndefault refuse\ncaller ann gold\ncaller bob gold\n")
			var more int
			proctest.Eventually(t, 60*time.Second, func() error {
				if more += passing(t, address, "bob"); more == 0 {
					return errors.New("bob has his old plan")
				}
				return nil
			})
			if more != 3 {
				t.Errorf("bob, who had used 2 and may 5 now: %d more pass", more)
			}
		})
	}
}

// passing asks as a customer until it is refused, and says how often it was not.
func passing(t *testing.T, address, customer string) (n int) {
	t.Helper()
	for ; n < 20; n++ {
		code, err := as(t, address, customer)
		switch {
		case err != nil:
			t.Fatal(err)
		case code == http.StatusTooManyRequests:
			return n
		case code != http.StatusOK:
			t.Fatalf("status %d", code)
		}
	}
	return n
}

// as asks as a customer.
func as(t *testing.T, address, customer string) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-customer", customer)
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
