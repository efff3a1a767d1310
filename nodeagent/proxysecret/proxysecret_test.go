package proxysecret_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

func TestKeyIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proxy.key")
	secrets := make([]string, 8)
	var wg sync.WaitGroup
	for i := range secrets {
		wg.Go(func() {
			k, err := proxysecret.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			secrets[i] = k.Secret("one")
		})
	}
	wg.Wait()
	k, err := proxysecret.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if s != k.Secret("one") || !k.Is("one", s) {
			t.Fatal("those who made the key at the same time have different ones")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSecretIsOfOneProxyOfOneNode(t *testing.T) {
	open := func() *proxysecret.Key {
		k, err := proxysecret.Open(filepath.Join(t.TempDir(), "proxy.key"))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k, other := open(), open()
	s := k.Secret("one")
	if len(s) != 43 || k.Is("two", s) || other.Is("one", s) {
		t.Errorf("%d characters; it is also that of another", len(s))
	}
	for _, wrong := range []string{"", s[:42], s + "A", strings.ToLower(s), "A" + s[1:]} {
		if wrong != s && k.Is("one", wrong) {
			t.Error("something else is taken for it")
		}
	}
}

func TestBadKeyFiles(t *testing.T) {
	good := strings.Repeat("A", 43) + "\n"
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"readable for others": {good, 0o640, "has mode"},
		"empty":               {"", 0o600, "not what writ made"},
		"cut":                 {good[:20], 0o600, "not what writ made"},
		"longer":              {good + "A", 0o600, "not what writ made"},
		"not canonical":       {good[:42] + "B\n", 0o600, "not what writ made"},
		"another alphabet":    {"+" + good[1:], 0o600, "not what writ made"},
	} {
		path := filepath.Join(t.TempDir(), "proxy.key")
		if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := proxysecret.Open(path)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if data, _ := os.ReadFile(path); string(data) != tc.content {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, err := proxysecret.Open(filepath.Join(t.TempDir(), "missing", "proxy.key")); err == nil {
		t.Error("a missing folder")
	}
}
