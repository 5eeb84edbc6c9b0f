// Reads PTX: splits it in instructions, finds which registers are alive where, and gives each a
// place in the register file that no other needs at that time. NVRTC numbers thousands of registers.
#include "ptx.h"

#include <algorithm>
#include <regex>
#include <stdexcept>

namespace {

using Words = std::vector<std::string>;

std::string trim(const std::string& s) {
    const auto a = s.find_first_not_of(" \t\n\r"), b = s.find_last_not_of(" \t\n\r");
    return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}

Words split(const std::string& s, char by) {  // not inside of brackets
    Words out;
    std::string now;
    int depth = 0;
    for (char c : s) {
        depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
        if (c == by && depth == 0) { out.push_back(trim(now)); now.clear(); }
        else now += c;
    }
    if (!trim(now).empty()) out.push_back(trim(now));
    return out;
}

int bytes(const std::string& type) {
    if (type == "pred") return 1;
    return std::stoi(type.substr(type.find_first_of("0123456789"))) / 8;
}

int aligned(int at, int by) { return (at + by - 1) / by * by; }

struct Reader {
    Kernel& k;
    const std::map<std::string, std::vector<uint8_t>>& variables;
    std::map<std::string, int> shared, local, parameters, labels;
    std::string dynamic;                         // the name of the array without a size
    std::map<std::string, int> ids;              // of every register, constant, special value
    std::vector<bool> wide;                      // of each id: 8 bytes rather than 4
    std::vector<bool> fixed;                     // holds the same in the whole launch
    std::map<std::string, bool> declared;        // registers by their prefix: wide?
    std::vector<std::string> targets;            // of each instruction, or ""

    int id(const std::string& key, bool is_wide, bool is_fixed) {
        auto [at, fresh] = ids.try_emplace(key, (int)ids.size());
        if (fresh) { wide.push_back(is_wide); fixed.push_back(is_fixed); }
        return at->second;
    }

    int constant(uint64_t value, bool is_wide) {
        const auto key = "=" + std::to_string(value) + (is_wide ? "w" : "");
        const bool fresh = !ids.count(key);
        const int at = id(key, is_wide, true);
        if (fresh) k.constants.push_back({at, is_wide, value});
        return at;
    }

    int special(const std::string& name, bool is_wide) {
        const auto key = name + (is_wide ? "w" : "");
        const bool fresh = !ids.count(key);
        const int at = id(key, is_wide, true);
        if (fresh) k.specials.push_back({at, name, is_wide});
        return at;
    }

    bool wide_register(const std::string& name) {
        if (auto at = declared.find(name); at != declared.end()) return at->second;
        return declared.at(name.substr(0, name.find_last_not_of("0123456789") + 1));
    }

    int operand(const std::string& s, bool is_wide) {
        if (s[0] == '%' && (s.find('.') != std::string::npos || s == "%laneid")) return special(s, is_wide);
        if (s == "WARP_SZ") return constant(32, is_wide);
        if (s[0] == '%') return id(s, wide_register(s), false);
        if (s.size() > 2 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F' || s[1] == 'd' || s[1] == 'D'))
            return constant(std::stoull(s.substr(2), nullptr, 16), is_wide);
        if (s == dynamic) return constant(aligned(k.shared_bytes, 16), is_wide);
        if (auto at = shared.find(s); at != shared.end()) return constant(at->second, is_wide);
        if (auto at = local.find(s); at != local.end())
            return special("local+" + std::to_string(at->second), true);
        if (auto at = parameters.find(s); at != parameters.end())
            return special("param+" + std::to_string(at->second), true);
        if (auto at = variables.find(s); at != variables.end())
            return constant((uint64_t)(uintptr_t)at->second.data(), true);
        if (s == "_") return id("_sink", true, false);
        size_t used = 0;
        const auto number = s[0] == '-' ? (uint64_t)std::stoll(s, &used, 0) : std::stoull(s, &used, 0);
        if (used < s.size() && s[used] != 'U') throw std::runtime_error("operand " + s);
        return constant(is_wide ? number : (uint32_t)number, is_wide);
    }

    // [register + offset], [symbol + offset]
    void address(const std::string& s, const std::string& space, Ins& ins) {
        const auto parts = split(s.substr(1, s.size() - 2), '+');
        ins.offset = parts.size() > 1 ? std::stoll(parts[1]) : 0;
        ins.wide_address = space != "shared" || (parts[0][0] == '%' && wide_register(parts[0]));
        ins.r[ins.count++] = operand(parts[0], ins.wide_address);
    }

    void statement(std::string s) {
        static const std::regex guarded("@(!?)(%\\w+)\\s+(.*)");
        Ins ins;
        ins.text = s;
        std::smatch m;
        if (s[0] == '@' && std::regex_match(s, m, guarded)) {
            ins.unless = m[1].length() > 0;
            ins.guard = operand(m[2], false);
            s = m[3].str();
        }
        const auto space = s.find_first_of(" \t");
        const Words words = split(s.substr(0, space), '.');
        const Words arguments = space == std::string::npos ? Words{} : split(s.substr(space), ',');
        std::string target;
        operands(words, arguments, ins, target);
        ins.op = find(words, ins);
        k.code.push_back(ins);
        targets.push_back(target);
    }

    void operands(const Words& words, const Words& arguments, Ins& ins, std::string& target) {
        const std::string &what = words[0], &type = words.back();
        auto has = [&](const char* w) { return std::count(words.begin(), words.end(), w) > 0; };
        if (what == "bra") { ins.kind = Ins::BRANCH; target = arguments[0]; return; }
        if (what == "ret" || what == "exit") { ins.kind = Ins::EXIT; return; }
        if (what == "bar" || what == "barrier") { ins.kind = has("warp") ? Ins::PLAIN : Ins::BARRIER; return; }
        if (what == "membar" || what == "fence") return;
        const bool atomic = what == "atom" || what == "red";
        if (what == "ld" || what == "ldu" || what == "st" || atomic) {
            const std::string at = has("shared") ? "shared" : has("param") ? "param" : "global";
            for (const auto& a : arguments)
                if (a[0] == '[') address(a, at, ins);
            for (const auto& a : arguments)
                if (a[0] != '[')
                    for (const auto& r : split(a[0] == '{' ? a.substr(1, a.size() - 2) : a, ',')) {
                        if (bytes(type) < 8 && r[0] == '%' && wide_register(r)) ins.wide_value = true;
                        ins.r[ins.count++] = operand(r, bytes(type) == 8);
                    }
            return;
        }
        // A source may be wider than what is read of it.
        if (what == "cvt" && type != "tf32" && bytes(type) < 8 && arguments[1][0] == '%' && arguments[1].find('.') == std::string::npos &&
            wide_register(arguments[1])) ins.wide_value = true;
        // The width of a constant is that of the type it is read as.
        const bool twice = has("wide");
        bool is_wide = type == "pred" ? false : type == "tf32" ? false : bytes(type) == 8;
        for (size_t i = 0; i < arguments.size(); ++i) {
            std::string a = arguments[i];
            const bool inverted = a[0] == '!';
            if (inverted) { ins.mode |= 1 << 16; a = a.substr(1); }
            const auto bar = a.find('|');
            if (bar != std::string::npos) {  // two results
                ins.r[ins.count++] = operand(trim(a.substr(0, bar)), false);
                ins.r[ins.count++] = operand(trim(a.substr(bar + 1)), false);
                ins.mode |= 1 << 17;
                continue;
            }
            const auto parts = split(a[0] == '{' ? a.substr(1, a.size() - 2) : a, ',');
            for (const auto& p : parts) {
                const bool in_pack = a[0] == '{' && what == "mov";
                const bool w = in_pack ? is_wide && parts.size() == 1
                               : twice ? (i == 0 || i == 3)
                               : (what == "shl" || what == "shr") && i == 2 ? false
                               : what == "selp" && i == 3 ? false : is_wide;
                ins.r[ins.count++] = operand(p, w);
            }
            if (a[0] == '{' && what == "mov") ins.mode |= (i == 0 ? 1 : 2) << 18;
        }
    }

    // How many of an instruction's first operands are written.
    static int written(const Ins& ins) {
        const auto first = ins.text.find("@") == 0 ? ins.text.find(' ') + 1 : 0;
        const auto word = ins.text.substr(ins.text.find_first_not_of(" \t", first));
        auto is = [&](const char* w) { return word.rfind(w, 0) == 0; };
        if (ins.kind != Ins::PLAIN || is("st.") || is("red.")) return 0;
        if (is("ld") || is("atom")) return -1;  // all but the address, which comes first
        if (is("mma")) return 4;
        if (ins.mode >> 17 & 1) return 2;
        if (ins.mode >> 18 & 1) return ins.count - 1;
        return ins.count > 0;
    }

    static void uses(const Ins& ins, std::vector<int>& reads, std::vector<int>& writes) {
        reads.clear();
        writes.clear();
        const int w = written(ins);
        const bool atom = ins.text.find("atom.") != std::string::npos;
        for (int i = 0; i < ins.count; ++i) {
            const bool result = w < 0 ? (i > 0 && (!atom || i == 1)) : i < w;
            (result ? writes : reads).push_back(ins.r[i]);
        }
        if (ins.guard >= 0) {
            reads.push_back(ins.guard);
            reads.insert(reads.end(), writes.begin(), writes.end());  // kept where it does not hold
        }
    }

    void place() {
        const int n = (int)k.code.size(), ids_count = (int)ids.size();
        std::vector<int> block_of(n + 1), starts;
        for (int i = 0; i < n; ++i)
            if (i == 0 || k.code[i - 1].kind == Ins::BRANCH || k.code[i - 1].kind == Ins::EXIT) starts.push_back(i);
        for (auto& [name, at] : labels) starts.push_back(at);
        std::sort(starts.begin(), starts.end());
        starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
        while (!starts.empty() && starts.back() >= n) starts.pop_back();
        const int blocks = (int)starts.size();
        std::map<int, int> block_at;
        for (int b = 0; b < blocks; ++b) block_at[starts[b]] = b;
        std::vector<std::vector<bool>> in(blocks, std::vector<bool>(ids_count)), out = in;
        std::vector<int> reads, writes;
        for (bool changed = true; changed;) {
            changed = false;
            for (int b = blocks - 1; b >= 0; --b) {
                const int end = b + 1 < blocks ? starts[b + 1] : n;
                std::vector<bool> live(ids_count);
                const Ins& last = k.code[end - 1];
                auto follow = [&](int next) {
                    auto at = block_at.find(next);
                    if (at == block_at.end()) return;
                    for (int i = 0; i < ids_count; ++i) if (in[at->second][i]) live[i] = true;
                };
                if (last.kind == Ins::BRANCH) follow(last.target);
                if (!(last.guard < 0 && (last.kind == Ins::BRANCH || last.kind == Ins::EXIT))) follow(end);
                out[b] = live;
                for (int i = end - 1; i >= starts[b]; --i) {
                    uses(k.code[i], reads, writes);
                    for (int w : writes) live[w] = false;
                    for (int r : reads) live[r] = true;
                }
                if (live != in[b]) { in[b] = live; changed = true; }
            }
        }
        std::vector<int> first(ids_count, n + 1), last(ids_count, -1);
        auto touch = [&](int id, int at) { first[id] = std::min(first[id], at); last[id] = std::max(last[id], at); };
        for (int b = 0; b < blocks; ++b) {
            const int end = b + 1 < blocks ? starts[b + 1] : n;
            for (int i = 0; i < ids_count; ++i) {
                if (in[b][i]) touch(i, starts[b]);
                if (out[b][i]) touch(i, end);
            }
            for (int i = starts[b]; i < end; ++i) {
                uses(k.code[i], reads, writes);
                for (int id : reads) touch(id, i);
                for (int id : writes) touch(id, i);
            }
        }
        std::vector<int> order, place(ids_count, -1), free_of[2];
        for (int i = 0; i < ids_count; ++i) {
            if (fixed[i]) { place[i] = k.places; k.places += 1 + wide[i]; }
            else if (last[i] >= 0) order.push_back(i);
        }
        std::sort(order.begin(), order.end(), [&](int a, int b) { return first[a] < first[b]; });
        std::multimap<int, int> busy;  // by when they end
        for (int id : order) {
            while (!busy.empty() && busy.begin()->first < first[id]) {
                free_of[wide[busy.begin()->second]].push_back(place[busy.begin()->second]);
                busy.erase(busy.begin());
            }
            auto& free = free_of[wide[id]];
            if (free.empty()) { place[id] = k.places; k.places += 1 + wide[id]; }
            else { place[id] = free.back(); free.pop_back(); }
            busy.emplace(last[id], id);
        }
        for (auto& ins : k.code) {
            for (int i = 0; i < ins.count; ++i) ins.r[i] = place[ins.r[i]];
            if (ins.guard >= 0) ins.guard = place[ins.guard];
        }
        for (auto& c : k.constants) c.place = place[c.place];
        for (auto& s : k.specials) s.place = place[s.place];
    }

    void declare(const std::string& s) {
        static const std::regex reg("\\.reg\\s+\\.(\\w+)\\s+(%\\w+)(<\\d+>)?.*");
        static const std::regex memory("\\.(shared|local)\\s+(?:\\.align\\s+(\\d+)\\s+)?\\.(\\w+)\\s+([\\w$]+)(?:\\[(\\d*)\\])?.*");
        std::smatch m;
        if (std::regex_match(s, m, reg)) { declared[m[2]] = bytes(m[1]) == 8; return; }
        if (!std::regex_match(s, m, memory)) return;  // .loc, .file, .pragma
        const int size = bytes(m[3]), align = m[2].matched ? std::stoi(m[2]) : size;
        int& total = m[1] == "shared" ? k.shared_bytes : k.local_bytes;
        total = aligned(total, align);
        (m[1] == "shared" ? shared : local)[m[4]] = total;
        total += size * (m[5].matched && m[5].length() ? std::stoi(m[5]) : 1);
    }

    void read(const std::string& header, const std::string& body) {
        static const std::regex parameter(
            "\\.param\\s+(?:\\.align\\s+(\\d+)\\s+)?\\.(\\w+)\\s+(?:\\.ptr\\s+(?:\\.\\w+\\s+)?(?:\\.align\\s+\\d+\\s+)?)?([\\w$]+)(?:\\[(\\d+)\\])?");
        for (std::sregex_iterator m(header.begin(), header.end(), parameter), end; m != end; ++m) {
            const int size = bytes((*m)[2]) * ((*m)[4].matched ? std::stoi((*m)[4]) : 1);
            const int align = (*m)[1].matched ? std::stoi((*m)[1]) : size;
            k.parameter_bytes = aligned(k.parameter_bytes, align);
            parameters[(*m)[3]] = k.parameter_bytes;
            k.parameters.push_back({k.parameter_bytes, size});
            k.parameter_bytes += size;
        }
        std::string now;
        for (const auto& piece : split_lines(body)) {
            std::string line = trim(piece);
            const auto colon = line.find(':');
            if (line[0] == '$' && colon != std::string::npos) {
                labels[line.substr(0, colon)] = (int)k.code.size();
                line = trim(line.substr(colon + 1));
            }
            while (!line.empty() && (line[0] == '{' || line[0] == '}') && line.find(';') == std::string::npos && now.empty())
                line = trim(line.substr(1));
            if (!now.empty() && !line.empty()) now += " ";
            now += line;
            for (auto end = now.find(';'); end != std::string::npos; end = now.find(';')) {
                std::string s = trim(now.substr(0, end));
                now = trim(now.substr(end + 1));
                while (!s.empty() && (s[0] == '{' || s[0] == '}')) s = trim(s.substr(1));
                if (s.empty()) continue;
                if (s[0] == '.') declare(s);
                else statement(s);
            }
            if (now == "}" || now == "{") now.clear();
        }
        for (size_t i = 0; i < k.code.size(); ++i)
            if (!targets[i].empty()) k.code[i].target = labels.at(targets[i]);
        place();
    }

    static Words split_lines(const std::string& s) {
        Words out;
        size_t at = 0;
        for (size_t end; (end = s.find('\n', at)) != std::string::npos; at = end + 1) out.push_back(s.substr(at, end - at));
        return out;
    }
};

// Device variables with their first values: .global .align 4 .b8 name[n] = {...};
// Shared memory of a function that several kernels call is declared beside them: `common`, by name.
void variables(const std::string& ptx, Module& module, std::string& dynamic, std::map<std::string, std::string>& common) {
    static const std::regex form(
        "(?:^|\\n)(?:\\.visible |\\.weak |\\.extern )?\\.(global|const|shared)\\s+(?:\\.align\\s+\\d+\\s+)?\\.(\\w+)\\s+([\\w$]+)(?:\\[(\\d*)\\])?(?:\\s*=\\s*([^;]*))?;");
    for (std::sregex_iterator m(ptx.begin(), ptx.end(), form), end; m != end; ++m) {
        if ((*m)[1] == "shared") {
            if ((*m)[4].length()) common[(*m)[3]] = trim((*m)[0]);
            else dynamic = (*m)[3];
            continue;
        }
        const int size = bytes((*m)[2]);
        std::vector<uint8_t> data(size * ((*m)[4].matched && (*m)[4].length() ? std::stoi((*m)[4]) : 1));
        std::string values = (*m)[5].matched ? (*m)[5].str() : "";
        values.erase(std::remove_if(values.begin(), values.end(), [](char c) { return c == '{' || c == '}'; }), values.end());
        size_t at = 0;
        for (const auto& v : split(values, ',')) {
            const uint64_t number = v[0] == '-' ? (uint64_t)std::stoll(v, nullptr, 0) : std::stoull(v, nullptr, 0);
            for (int i = 0; i < size && at < data.size(); ++i) data[at++] = (uint8_t)(number >> 8 * i);
        }
        module.variables[(*m)[3]] = data;
    }
}

}  // namespace

Module* parse(const std::string& text) {
    std::string ptx;
    for (const auto& line : Reader::split_lines(text + "\n")) ptx += line.substr(0, line.find("//")) + "\n";
    auto* module = new Module;
    std::string dynamic;
    std::map<std::string, std::string> common;
    variables(ptx, *module, dynamic, common);
    for (size_t at = 0; (at = ptx.find(".entry", at)) != std::string::npos;) {
        const auto open = ptx.find('(', at), close = ptx.find(')', open);
        const auto begin = ptx.find("\n{", close), end = ptx.find("\n}\n", begin);
        const std::string name = trim(ptx.substr(at + 6, open - at - 6));
        Kernel& k = module->kernels[name];
        k.name = name;
        const std::string bounds = ptx.substr(close, begin - close);
        if (const auto max = bounds.find(".maxntid"); max != std::string::npos) k.threads = std::stoi(bounds.substr(max + 8));
        Reader reader{k, module->variables, {}, {}, {}, {}, dynamic, {}, {}, {}, {}, {}};
        std::string body = ptx.substr(begin + 2, end - begin - 1);
        for (const auto& [used, declaration] : common)
            if (body.find(used) != std::string::npos) body = declaration + "\n" + body;
        reader.read(ptx.substr(open, close - open), body);
        at = end;
    }
    return module;
}
