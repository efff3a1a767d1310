package bootstrap_test

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
)

func options() bootstrap.Options {
	return bootstrap.Options{
		NodeID: "sidecar~127.0.16.3~reviews-v2-1.default~default.svc.cluster.local", Cluster: "reviews-v2",
		AgentSocket: "/run/writ/nodeagent.sock", Secret: "none", Address: netip.MustParseAddr("127.0.16.3"),
		Metadata: map[string]any{"NAMESPACE": "default"},
	}
}

func TestEnvoyTakesTheBootstrap(t *testing.T) {
	data, err := bootstrap.Bootstrap(options())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, envoy := range envoytest.All(t) {
		out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "--log-level", "warning").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", envoy, err, out)
		}
		if strings.Contains(string(out), "eprecated") {
			t.Errorf("%s: uses what is deprecated:\n%s", envoy, out)
		}
	}
}

func TestCallsFromItsOwnLoopbackAddress(t *testing.T) {
	for address, want := range map[string]string{"127.0.16.3": "127.0.16.3", "10.0.0.1": ""} {
		o := options()
		o.Address = netip.MustParseAddr(address)
		b, err := bootstrap.Proto(o)
		if err != nil {
			t.Fatal(err)
		}
		source := b.GetClusterManager().GetUpstreamBindConfig().GetSourceAddress()
		if source.GetAddress() != want || source.GetPortValue() != 0 {
			t.Errorf("a proxy at %s calls from %v, want %q", address, source, want)
		}
	}
}

func TestSameOptionsSameBytes(t *testing.T) {
	first, err := bootstrap.Bootstrap(options())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := bootstrap.Bootstrap(options())
		if err != nil || !bytes.Equal(again, first) {
			t.Fatalf("different: %v", err)
		}
	}
	want, err := bootstrap.Proto(options())
	if err != nil {
		t.Fatal(err)
	}
	got := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal(first, got); err != nil || !proto.Equal(got, want) {
		t.Fatalf("the JSON is not the message: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		change                 func(*bootstrap.Options)
		admin, ready, exported string
	}{
		{"own address", func(*bootstrap.Options) {}, "127.0.16.3:15000", "127.0.16.3:15021", "127.0.16.3:15090"},
		{"pod", func(o *bootstrap.Options) { o.Address = netip.Addr{} }, "127.0.0.1:15000", "0.0.0.0:15021", "0.0.0.0:15090"},
		{"given", func(o *bootstrap.Options) { o.Admin = netip.MustParseAddrPort("127.0.0.1:1") }, "127.0.0.1:1", "127.0.16.3:15021", "127.0.16.3:15090"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options()
			tc.change(&o)
			b, err := bootstrap.Proto(o)
			if err != nil {
				t.Fatal(err)
			}
			sock := b.GetAdmin().GetAddress().GetSocketAddress()
			if got := netip.AddrPortFrom(netip.MustParseAddr(sock.GetAddress()), uint16(sock.GetPortValue())).String(); got != tc.admin {
				t.Errorf("admin at %s, want %s", got, tc.admin)
			}
			for i, want := range []string{tc.ready, tc.exported} {
				sock := b.GetStaticResources().GetListeners()[i].GetAddress().GetSocketAddress()
				if got := netip.AddrPortFrom(netip.MustParseAddr(sock.GetAddress()), uint16(sock.GetPortValue())).String(); got != want {
					t.Errorf("listener %d at %s, want %s", i, got, want)
				}
			}
		})
	}
}

func TestWrongOptions(t *testing.T) {
	for name, change := range map[string]func(*bootstrap.Options){
		"node id":     func(o *bootstrap.Options) { o.NodeID = "" },
		"relative":    func(o *bootstrap.Options) { o.AgentSocket = "agent.sock" },
		"long path":   func(o *bootstrap.Options) { o.AgentSocket = "/" + strings.Repeat("x", 107) },
		"secret":      func(o *bootstrap.Options) { o.Secret = "" },
		"connections": func(o *bootstrap.Options) { o.MaxConnections = -1 },
		"metadata":    func(o *bootstrap.Options) { o.Metadata = map[string]any{"x": make(chan int)} },
	} {
		o := options()
		change(&o)
		if _, err := bootstrap.Bootstrap(o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
