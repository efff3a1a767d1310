package ratelimit

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// redisRights are all that the store needs of a Redis user's ACL.
const redisRights = "+evalsha +script|load +select +time +get +set +del +incrby +expire +hget +hset +hdel +hgetall +hlen +pexpire +zadd +zcard +zrange +zrem"

// TestRedisWithTLSAndUser: a real redis-server that takes TLS and one user only,
// who may do no more than count.
func TestRedisWithTLSAndUser(t *testing.T) {
	dir, root := t.TempDir(), pkitest.NewRoot(t, "")
	leaf := pkitest.Leaf("", time.Hour)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert, key := root.Issue(t, leaf)
	file := func(name, text string) string {
		writeFile(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	roots := file("roots.pem", string(root.PEM()))
	port := proctest.Port(t)
	args := []string{
		"--tls-port", fmt.Sprint(port), "--tls-auth-clients", "no",
		"--tls-cert-file", file("cert.pem", string(cert)), "--tls-key-file", file("key.pem", string(key)), "--tls-ca-cert-file", roots,
		"--user", "default", "off", "--user", "test", "on", ">look", "~*", "+@all", "--user", "limiter", "on", ">s3cret", "~writ:*", "~d_*",
	}
	server := redistest.Start(t, append(args, strings.Fields(redisRights)...)...)
	redis := func(args ...string) string {
		return server.Command(t, append([]string{"--user", "test", "--pass", "look", "--no-auth-warning", "-n", "3"}, args...)...)
	}

	good := RedisConfig{
		Address: fmt.Sprintf("127.0.0.1:%d", port), Username: "limiter", PasswordFile: file("password", " s3cret\n"), DB: 3,
		TLS: true, CAFile: roots, Timeout: config.Duration(time.Second),
	}
	uses := []limit.Use{
		{Key: "writ:{default/q}:0:s", Limit: storetest.Sliding(t, 100, time.Minute), Hits: 1},
		{Key: "d_k_v_", Limit: storetest.Fixed(t, 100, time.Minute), Hits: 1},
	}
	for _, c := range []struct {
		name string
		edit func(*RedisConfig)
		want string // in the error, "" if it counts
	}{
		{"as it should be", func(*RedisConfig) {}, ""},
		{"another database", func(r *RedisConfig) { r.DB = 4 }, ""},
		{"no such database", func(r *RedisConfig) { r.DB = 400 }, "DB index is out of range"},
		{"wrong password", func(r *RedisConfig) { r.PasswordFile = file("wrong", "wrong") }, "WRONGPASS"},
		{"another user", func(r *RedisConfig) { r.Username = "nobody" }, "WRONGPASS"},
		{"the default user", func(r *RedisConfig) { r.Username = "" }, "WRONGPASS"},
		{"nobody", func(r *RedisConfig) { r.Username, r.PasswordFile = "", "" }, "NOAUTH"},
		{"roots of the system", func(r *RedisConfig) { r.CAFile = "" }, "certificate"},
		{"another root", func(r *RedisConfig) { r.CAFile = file("other.pem", string(pkitest.NewRoot(t, "").PEM())) }, "certificate"},
		{"another name", func(r *RedisConfig) { r.Address = fmt.Sprintf("localhost:%d", port) }, "certificate"},
		{"plain text", func(r *RedisConfig) { r.TLS, r.CAFile = false, "" }, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good
			c.edit(&r)
			if errs := r.validate(); errs != nil {
				t.Fatal(errs)
			}
			o, err := r.options()
			if err != nil {
				t.Fatal(err)
			}
			o.Timeout = 20 * time.Second // a busy machine is not what this test is about
			store, err := redisstore.New(o)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = store.Run(ctx) }()
			defer func() { cancel(); <-done }()
			out := make([]limit.Outcome, len(uses))
			err = store.Decide(t.Context(), time.Now(), uses, out)
			if c.want == "" && (err != nil || out[0].Remaining != 99 || out[1].Remaining != 99) {
				t.Errorf("%v, %+v", err, out)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
		})
	}
	if keys := strings.Fields(redis("KEYS", "*")); len(keys) != 2 {
		t.Errorf("database 3 has %q, want both counters", keys)
	}

	if page, err := os.ReadFile("../docs/security/ratelimit.md"); err != nil || !strings.Contains(string(page), "`~writ:* "+redisRights+"`") {
		t.Errorf("the page for operators has other rights than these (%v)", err)
	}

	// Whoever takes over these rights can do no more.
	limiter := func(args ...string) string {
		return server.Command(t, append([]string{"--user", "limiter", "--pass", "s3cret", "--no-auth-warning"}, args...)...)
	}
	for _, command := range [][]string{{"GET", "other"}, {"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"KEYS", "*"}} {
		if got := limiter(command...); !strings.HasPrefix(got, "NOPERM") {
			t.Errorf("%v: %s", command, got)
		}
	}
}

func TestRedisFilesThatAreNotThere(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "empty.pem"), "")
	writeFile(t, filepath.Join(dir, "open"), "s3cret")
	if err := os.Chmod(filepath.Join(dir, "open"), 0o640); err != nil {
		t.Fatal(err)
	}
	for want, r := range map[string]RedisConfig{
		"redis.password_file": {Address: "r:1", PasswordFile: filepath.Join(dir, "none")},
		"the file is empty":   {Address: "r:1", PasswordFile: filepath.Join(dir, "empty.pem")},
		"chmod 600":           {Address: "r:1", PasswordFile: filepath.Join(dir, "open")},
		"redis.sentinel.password_file": {
			Sentinel: SentinelConfig{Master: "m", Addresses: []string{"s:1"}, PasswordFile: filepath.Join(dir, "open")},
		},
		"redis.ca_file: open": {Address: "r:1", TLS: true, CAFile: filepath.Join(dir, "none")},
		"no PEM certificate":  {Address: "r:1", TLS: true, CAFile: filepath.Join(dir, "empty.pem")},
	} {
		if _, err := r.options(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRedisExamplesOfThePage reads the configurations of docs/quotas.md.
func TestRedisExamplesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Redis\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := strings.Split(section, "```yaml\n")[1:]
	if len(blocks) != 3 {
		t.Fatalf("%d configurations, want one of each kind", len(blocks))
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "password"), "s3cret")
	writeFile(t, filepath.Join(dir, "ca.pem"), string(pkitest.NewRoot(t, "").PEM()))
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		block = regexp.MustCompile(`/etc/writ/[a-z-]*password`).ReplaceAllString(block, dir+"/password")
		block = strings.ReplaceAll(block, "/etc/writ/redis-ca.pem", dir+"/ca.pem")
		file := filepath.Join(dir, "config.yaml")
		writeFile(t, file, block+"descriptors: "+dir+"\n")
		c := DefaultConfig()
		if err := config.Load(file, &c); err != nil {
			t.Fatalf("%v:\n%s", err, block)
		}
		if errs := c.Redis.validate(); errs != nil {
			t.Errorf("%v:\n%s", errs, block)
		}
		o, err := c.Redis.options()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := redisstore.New(o); err != nil {
			t.Errorf("%v:\n%s", err, block)
		}
	}
}
