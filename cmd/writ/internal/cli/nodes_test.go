package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// gatekeeper is an authority that makes tokens for nodes.
type gatekeeper struct {
	capb.UnimplementedAdminServer
	ttl time.Duration
}

func (*gatekeeper) GetBundle(context.Context, *capb.GetBundleRequest) (*capb.Bundle, error) {
	return &capb.Bundle{TrustDomain: "example.org"}, nil
}

func (g *gatekeeper) CreateJoinToken(_ context.Context, r *capb.CreateJoinTokenRequest) (*capb.CreateJoinTokenResponse, error) {
	if strings.HasSuffix(r.GetSpiffeId(), "..") {
		return nil, status.Error(codes.InvalidArgument, "no node can have that name")
	}
	g.ttl = r.GetTtl().AsDuration()
	return &capb.CreateJoinTokenResponse{Token: "sesame of " + r.GetSpiffeId(), ExpiresAt: timestamppb.New(time.Unix(1_700_000_000, 0))}, nil
}

func TestReadmit(t *testing.T) {
	g := new(gatekeeper)
	socket := adminServer(t, func(s *grpc.Server) { capb.RegisterAdminServer(s, g) })
	run := func(args ...string) (code int, stdout, stderr string) {
		var o, e bytes.Buffer
		code = Main(append([]string{"nodes", "readmit", "--admin", socket}, args...), &o, &e)
		return code, o.String(), e.String()
	}
	// The token alone goes to stdout, to be piped.
	code, stdout, stderr := run("n1")
	if code != 0 || stdout != "sesame of spiffe://example.org/writ/node/n1\n" || !strings.Contains(stderr, "good once, until 2023-11-14") {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	file := filepath.Join(t.TempDir(), "join-token")
	code, stdout, stderr = run("n1", "--token-file", file, "--ttl", "5m")
	if code != 0 || strings.Contains(stdout+stderr, "sesame") || g.ttl != 5*time.Minute {
		t.Errorf("%d, %q, %q, %s", code, stdout, stderr, g.ttl)
	}
	data, err := os.ReadFile(file)
	if info, serr := os.Stat(file); err != nil || serr != nil || info.Mode().Perm() != 0o600 || string(data) != "sesame of spiffe://example.org/writ/node/n1\n" {
		t.Errorf("%q, %v, %v", data, err, serr)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{".."}, "no node can have that name"},
		{[]string{"n1", "--token-file", "relative"}, "absolute path"},
		{nil, "name the node"},
	} {
		if code, stdout, stderr := run(tc.args...); code != exitCannotTell || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: %d, %q, %q", tc.args, code, stdout, stderr)
		}
	}
}
