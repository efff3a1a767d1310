package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

const twoInstances = `apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: web-1, namespace: shop}
spec: {address: 10.0.0.1, interception: redirect}
---
apiVersion: local.writ.mesh/v1alpha1
kind: WorkloadInstance
metadata: {name: db-1, namespace: shop}
spec: {address: 127.0.16.7}
`

func TestBootstrap(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "instances.yaml")
	if err := os.WriteFile(file, []byte(twoInstances), 0o600); err != nil {
		t.Fatal(err)
	}
	const agent = "--agent=unix:///run/agent.sock"
	key := filepath.Join(dir, "proxy.key")
	run := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"bootstrap", file, "--key", key}, args...), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	if code, stdout, stderr := run(agent, "--out", dir); code != 0 || stdout != "" {
		t.Fatal(stdout, stderr)
	}
	var written []writtenBootstrap
	if code, stdout, stderr := run(agent, "--out", dir, "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &written) != nil || len(written) != 2 ||
		written[1] != (writtenBootstrap{Proxy: "shop/db-1", File: filepath.Join(dir, "shop-db-1.json")}) {
		t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
	}
	for name, want := range map[string]struct{ id, admin string }{
		"shop-web-1": {"sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local", "127.0.0.1"},
		"shop-db-1":  {"sidecar~127.0.16.7~db-1.shop~shop.svc.cluster.local", "127.0.16.7"},
	} {
		data, err := os.ReadFile(filepath.Join(dir, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, name+".json")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600, it has a secret", name, info.Mode(), err)
		}
		var b bootstrapv3.Bootstrap
		if err := protojson.Unmarshal(data, &b); err != nil {
			t.Fatal(err)
		}
		if b.GetNode().GetId() != want.id || b.GetAdmin().GetAddress().GetSocketAddress().GetAddress() != want.admin {
			t.Errorf("%s: node %s, administration at %v", name, b.GetNode().GetId(), b.GetAdmin().GetAddress())
		}
		if code, stdout, _ := run(agent, "--proxy", strings.Replace(name, "-", "/", 1)); code != 0 || stdout != string(data) {
			t.Errorf("%s: --proxy prints something else (exit code %d)", name, code)
		}
		secrets, err := proxysecret.Open(key)
		if err != nil {
			t.Fatal(err)
		}
		if got := b.GetStaticResources().GetSecrets(); len(got) != 1 || !secrets.Is(want.id, got[0].GetGenericSecret().GetSecret().GetInlineString()) {
			t.Errorf("%s: %d secrets, want that which the agent takes", name, len(got))
		}
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{agent}, "one of --out DIR and --proxy"},
		{[]string{agent, "--out", dir, "--proxy", "shop/web-1"}, "one of --out DIR and --proxy"},
		{[]string{agent, "--proxy", "shop/other"}, "it has shop/web-1, shop/db-1"},
		{[]string{"--agent", "127.0.0.1:1", "--out", dir}, "want unix:///absolute/path"},
		{[]string{agent, "--out", dir, "--mode", "0644"}, "--mode \"0644\": want 0600"},
		{[]string{agent, "--out", dir, "--key", file}, "is not what writ made"},
	} {
		if code, _, stderr := run(tc.args...); code == 0 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: exit code %d, %s", tc.args, code, stderr)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Replace(twoInstances, "redirect", "redirected", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(agent, "--out", dir); code == 0 || !strings.Contains(stderr, `unknown interception "redirected"`) {
		t.Errorf("wrong instances: exit code %d, %s", code, stderr)
	}
}
