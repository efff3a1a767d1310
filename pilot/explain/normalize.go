package explain

import (
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// normalize gives the path as every filter of the Envoy sees it, and false for one
// that Envoy refuses with 400. What is done is MeshConfig's pathNormalization
// (https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/). A query is
// kept as it is.
func normalize(m *model.Mesh, path string) (string, bool) {
	path, query, more := strings.Cut(path, "?")
	mode := m.Config.GetPathNormalization().GetNormalization()
	if mode != meshv1.MeshConfig_ProxyPathNormalization_NONE {
		path = withoutParameters(path)
		path = unescape(path, func(c byte) bool { return unreserved(c) })
		if mode == meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES {
			path = unescape(path, func(c byte) bool { return c == '/' || c == '\\' })
		}
		path = strings.ReplaceAll(path, `\`, "/")
		if !strings.HasPrefix(path, "/") {
			return "", false
		}
		path = withoutDots(path)
		if mode == meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES || mode == meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES {
			for strings.Contains(path, "//") {
				path = strings.ReplaceAll(path, "//", "/")
			}
		}
	}
	if more {
		path += "?" + query
	}
	return path, true
}

// malformed names the rule by which a request with that normalized path is malformed for
// package security, "" if none does.
func (l *life) malformed(path string) string {
	authorization := strings.ToLower(l.r.Headers["authorization"])
	switch {
	case strings.ContainsAny(l.r.Host, ",@%") || strings.Contains(l.r.Host, ".."):
		return "host"
	case dotsWithParameters(path):
		return "path"
	case strings.ContainsAny(l.r.Method, "abcdefghijklmnopqrstuvwxyz"):
		return "method"
	case strings.Contains(authorization, ",") && strings.Contains(authorization, "bearer "):
		return "authorization"
	}
	return ""
}

func dotsWithParameters(path string) bool {
	path, _, _ = strings.Cut(path, "?")
	for segment := range strings.SplitSeq(strings.ToLower(path), "/") {
		for _, dots := range []string{"..;", ".;", "..%3b", ".%3b"} {
			if strings.HasPrefix(segment, dots) {
				return true
			}
		}
	}
	return false
}

// unreserved characters (RFC 3986 section 2.3) mean the same with and without
// percent-encoding.
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func unescape(path string, which func(byte) bool) string {
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high >= 0 && low >= 0 && which(byte(high<<4|low)) {
				out.WriteByte(byte(high<<4 | low))
				i += 2
				continue
			}
		}
		out.WriteByte(path[i])
	}
	return out.String()
}

func unhex(c byte) int { return strings.IndexByte("0123456789abcdef", c|0x20) }

// withoutParameters leaves dot segments without their parameters, as Envoys do that know of
// CVE-2026-73551. Older ones leave them, and then the path is malformed.
func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if dots, _, ok := strings.Cut(s, ";"); ok && (dots == "." || dots == "..") {
			segments[i] = dots
		}
	}
	return strings.Join(segments, "/")
}

// withoutDots takes the segments . and .. out (RFC 3986 section 5.2.4).
func withoutDots(path string) string {
	segments := strings.Split(path[1:], "/")
	var out []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}
