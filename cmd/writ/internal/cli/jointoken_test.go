package cli

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// fakeAuthority makes tokens of the identity that is asked for.
type fakeAuthority struct{ capb.UnimplementedAdminServer }

func (fakeAuthority) CreateJoinToken(_ context.Context, r *capb.CreateJoinTokenRequest) (*capb.CreateJoinTokenResponse, error) {
	if strings.HasSuffix(r.GetSpiffeId(), "/nobody") {
		return nil, status.Error(codes.InvalidArgument, "nobody cannot join")
	}
	return &capb.CreateJoinTokenResponse{Token: "sesame of " + r.GetSpiffeId()}, nil
}

func TestJoinToken(t *testing.T) {
	dir, err := os.MkdirTemp("", "writ") //nolint:usetesting // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, pilot, node := "unix://"+dir+"/ca.sock", filepath.Join(dir, "pilot"), filepath.Join(dir, "node")
	l, err := net.Listen("unix", dir+"/ca.sock")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	capb.RegisterAdminServer(s, fakeAuthority{})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	run := func(args ...string) (int, string) {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"certs", "join-token", "--timeout", "10s"}, args...), &stdout, &stderr)
		if strings.Contains(stdout.String()+stderr.String(), "sesame of ") {
			t.Error("a token is printed")
		}
		return code, stderr.String()
	}
	if code, stderr := run("--admin", socket, "--trust-domain", "example.org", "writ/pilot="+pilot, "/writ/node/n1="+node); code != 0 {
		t.Fatal(stderr)
	}
	for file, want := range map[string]string{pilot: "sesame of spiffe://example.org/writ/pilot\n", node: "sesame of spiffe://example.org/writ/node/n1\n"} {
		data, err := os.ReadFile(file)
		if err != nil || string(data) != want {
			t.Errorf("%s holds %q, %v", file, data, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", file, info.Mode(), err)
		}
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--admin", socket, "writ/nobody=" + pilot}, "nobody cannot join"},
		{[]string{"--admin", socket, "writ/pilot"}, "want PATH=FILE"},
		{[]string{"--admin", socket, "writ/pilot=token"}, "want PATH=FILE"},
		{[]string{"--admin", "127.0.0.1:1", "writ/pilot=" + pilot}, "want unix:///absolute/path"},
		{[]string{"--timeout", "50ms", "--admin", "unix://" + dir + "/other.sock", "writ/pilot=" + pilot}, "join token for writ/pilot"},
	} {
		if code, stderr := run(tc.args...); code == 0 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: exit code %d, %s", tc.args, code, stderr)
		}
	}
}
