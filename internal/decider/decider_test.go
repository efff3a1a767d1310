package decider_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
)

func full() credential.Config {
	return credential.Config{CA: "127.0.0.1:1", TrustBundle: "b", TokenFile: "t", Dir: "d", TrustDomain: "cluster.local"}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		config decider.Config
		want   string // "" is valid
	}{
		"in the mesh":            {decider.Config{Listen: "0.0.0.0:1", Pilot: "pilot:1", Credential: full()}, ""},
		"in the mesh, on socket": {decider.Config{Listen: "unix:///s", SocketMode: "0666", Pilot: "pilot:1", Credential: full()}, ""},
		"alone, with mTLS":       {decider.Config{Listen: "0.0.0.0:1", Credential: full()}, ""},
		"alone":                  {decider.Config{Listen: "127.0.0.1:1"}, ""},
		"alone, on a socket":     {decider.Config{Listen: "unix:///s"}, ""},
		"plain text for all":     {decider.Config{Listen: ":1"}, "listen: address"},
		"plain text by name":     {decider.Config{Listen: "localhost:1"}, "plain text"},
		"nobody to ask":          {decider.Config{Listen: "unix:///s", Pilot: "pilot:1"}, "credential: missing"},
		"half a credential":      {decider.Config{Listen: "unix:///s", Credential: credential.Config{CA: "c:1"}}, "credential: missing"},
		"pilot":                  {decider.Config{Listen: "unix:///s", Pilot: "pilot", Credential: full()}, "pilot: address"},
		"listen":                 {decider.Config{Listen: "unix://s"}, "listen: address"},
		"mode":                   {decider.Config{Listen: "unix:///s", SocketMode: "0777"}, "socket_mode"},
	} {
		if err := c.config.Validate(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestKeysOfTheFile: the keys stand at the top of a service's file.
func TestKeysOfTheFile(t *testing.T) {
	var file struct {
		service.Common `yaml:",inline"`
		decider.Config `yaml:",inline"`
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	text := "monitoring: :1\nlisten: :2\nsocket_mode: '0666'\npilot: p:1\nstate: /s\ncredential: {ca: c:1}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.Load(path, &file); err != nil {
		t.Fatal(err)
	}
	if file.Monitoring != ":1" || file.Listen != ":2" || file.SocketMode != "0666" || file.Pilot != "p:1" || file.State != "/s" || file.Credential.CA != "c:1" {
		t.Errorf("read %+v", file)
	}
}

// TestAnswersOnASocketWithoutAnAuthority: whoever has a socket does not wait for a
// certificate. The mode of the socket is the one that was asked for.
func TestAnswersOnASocketWithoutAnAuthority(t *testing.T) {
	dir, err := os.MkdirTemp("", "d") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for mode, want := range map[string]os.FileMode{"": 0o600, "0666": 0o666} {
		c := decider.Config{Listen: "unix://" + dir + "/s" + mode, SocketMode: mode, Pilot: "127.0.0.1:1", Credential: full()}
		c.Credential.Dir = filepath.Join(dir, "identity"+mode)
		for _, file := range []*string{&c.Credential.TrustBundle, &c.Credential.TokenFile} {
			*file = filepath.Join(dir, *file) // not there yet
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)}
		decider.Register(rt.Health)
		if rt.Health.Ready() == nil {
			t.Error("ready before calls are taken")
		}
		beside := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- c.Run(ctx, decider.Service{
				Name: "authz", Methods: []string{healthpb.Health_Check_FullMethodName},
				Register: func(g *grpc.Server) {
					g.RegisterService(&grpc.ServiceDesc{
						ServiceName: healthpb.Health_ServiceDesc.ServiceName, HandlerType: healthpb.Health_ServiceDesc.HandlerType,
						Methods: healthpb.Health_ServiceDesc.Methods[:1],
					}, health.NewServer())
				},
				Tasks: []func(context.Context) error{func(ctx context.Context) error {
					close(beside)
					<-ctx.Done()
					return ctx.Err()
				}},
			}, rt)
		}()
		proctest.Eventually(t, 10*time.Second, rt.Health.Ready)
		<-beside
		if info, err := os.Stat(dir + "/s" + mode); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode %q: %v, %v", mode, info.Mode(), err)
		}
		conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Errorf("mode %q: %v", mode, err)
		}
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
}
